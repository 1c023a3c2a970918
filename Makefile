# make run   trains on the embedded sample (or DATA=... BACKBONE=... EPOCHS=... OUT=...), evaluates, and predicts a few photos into a picture
# make test  exports, cleans and runs every notebook, runs tests/, ruff and mypy, checks the README, the site and the packages
PYTHON   ?= python3
VENV     ?= .venv
BIN      := $(VENV)/bin
DATA     ?= sample
BACKBONE ?= timm/tf_efficientnet_lite0.in1k
EPOCHS   ?=
OUT      := $(or $(OUT),runs/$(shell date +%Y%m%d-%H%M%S))

.PHONY: run test setup export readme docs docs-check shipped clean
setup: $(VENV)/.ready

$(VENV)/.ready: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: setup
	$(BIN)/fruit_train --data $(DATA) --backbone $(BACKBONE) --out $(OUT) $(if $(EPOCHS),--epochs $(EPOCHS))
	$(BIN)/fruit_predict $(OUT)/examples --model $(OUT) --picture $(OUT)/predictions.png
	@echo "The run is in $(OUT): curves.png, confusion.png, predictions.png, history.csv, README.md"

test: setup
	CI=$(CI) $(BIN)/python -m pytest -q tests

export: setup
	$(BIN)/python tests/links.py && $(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python tests/readme.py

readme: setup
	$(BIN)/python tests/readme.py

# The site with its page "Try it", in _docs; needs Quarto (quarto.org) and npm. tests/ is on the path for what nbdev does beyond its own, tests/pages.py
docs: setup
	PYTHONPATH=tests $(BIN)/nbdev_docs
	$(BIN)/fruit_export --format web --out _docs/try

# Walks the built site in headless Chromium, at the widths of a laptop and a phone
docs-check: setup
	$(BIN)/python tests/check_site.py _docs

clean:
	rm -rf $(VENV) build dist *.egg-info _docs _proc

# The network that the package carries, from folders of photos with several sources: make shipped DATA="path/to/photos path/to/others"
shipped: setup
	$(BIN)/fruit_train --recipe robust --data $(DATA) --out $(OUT)
	cp $(OUT)/model.safetensors $(OUT)/config.json $(OUT)/README.md fruit_freshness/shipped/
	$(BIN)/python -c "from fruit_freshness.apps.export import write_graph; write_graph('fruit_freshness/shipped')"
