# make run   trains on the embedded sample (or DATA=... BACKBONE=... EPOCHS=... OUT=...), evaluates, and predicts a few photos into a picture
# make test  exports, cleans and runs every notebook, runs tests/, ruff and mypy, checks the README, the site and the packages
PYTHON   ?= python3
VENV     ?= .venv
BIN      := $(VENV)/bin
DATA     ?= sample
BACKBONE ?= timm/tf_efficientnet_lite0.in1k
EPOCHS   ?=
OUT      := $(or $(OUT),runs/$(shell date +%Y%m%d-%H%M%S))

.PHONY: run test setup export readme shipped clean
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

clean:
	rm -rf $(VENV) build dist *.egg-info _docs _proc

# The network that the package carries, from photos of apples, bananas, oranges and strawberries: make shipped DATA=path/to/photos SOURCES="where they are from"
shipped: setup
	$(BIN)/fruit_train --data $(DATA) --backbone $(BACKBONE) --out $(OUT)
	$(BIN)/python nbs/studies/shipped.py $(OUT) $(DATA) "$(SOURCES)"
