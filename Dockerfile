# The web service: docker build -t fruit_freshness . && docker run -p 8000:8000 -e FRUIT_SERVE_TOKEN=... fruit_freshness
FROM python:3.12-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir '.[serve]' && useradd --create-home fruit && rm -rf /app/*
USER fruit
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["fruit_serve", "--host", "0.0.0.0", "--port", "8000"]
