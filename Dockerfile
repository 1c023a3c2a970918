# The web service: docker build -t fruit_freshness . && docker run -p 8000:8000 -e FRUIT_SERVE_TOKEN=... fruit_freshness
FROM python:3.12-slim AS build
WORKDIR /app
COPY . .
RUN python -m venv /opt/fruit && /opt/fruit/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

# Without the sources, and without PyTorch, which neither answers nor the page need
FROM python:3.12-slim
COPY --from=build /opt/fruit /opt/fruit
ENV PATH=/opt/fruit/bin:$PATH
RUN useradd --create-home fruit
USER fruit
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["fruit_serve", "--host", "0.0.0.0", "--port", "8000"]
