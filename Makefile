# make demo       set up .venv and draw what a trained network sees of a photograph
# make package    build the distributions, check them, and try the wheel in an environment of its own
# make test       set up .venv with the test extras and run the whole suite
# make peers      add timm and torchvision, which the tests compare with, from the package index
# make consumers  add the libraries that the tests run over featnet, after the peers
# make docs       build the site in build/site
# make bench      the figures of benchmarks/, printed
# make gpu        checks and figures on a GPU, in at most eight minutes
# make clean      remove .venv and what was built

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
PIP := $(INSTALL) --quiet
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch from there, without CUDA
TORCH_INDEX ?=
DEMO := examples/chelsea.png --output-stride 8 --out build/demo --overwrite

.PHONY: demo test docs bench gpu setup peers consumers package clean

# Where the trained weights cannot be had, the same with random ones.
demo: .venv/.ready-demo
	@if $(BIN)/python -c "import featnet; featnet.demo_weights()" 2> /dev/null; \
	then set -x; $(BIN)/featnet extract $(DEMO) --demo; \
	else set -x; $(BIN)/featnet extract $(DEMO) --model resnet50 --out-indices 1 2 3 4; fi

test: .venv/.ready-test
	$(BIN)/python -m pytest -n auto --dist loadgroup

docs: .venv/.ready-docs
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html -d build/doctrees docs build/site

bench: .venv/.ready-test
	$(BIN)/python -m benchmarks

# With the torch that is there: it needs no environment of its own.
gpu:
	$(PYTHON) -m benchmarks.gpu

# The whole environment without running anything.
setup: .venv/.ready-test

# What timm needs besides is there already.
peers: .venv/.ready-test
	$(PIP) --no-deps timm torchvision

# Of the libraries of the last two lines a module each is run, which needs little of what they do.
consumers: .venv/.ready-test
	$(PIP) -e '.[cli,demo,test,consumers]'
	$(PIP) --no-deps anomalib mmsegmentation mmengine addict yapf termcolor platformdirs
	$(PIP) --no-deps mmpretrain importlib_metadata lazy-importer zipp effdet omegaconf pycocotools

# Only the stamps decide whether anything is installed, so packages that were added to .venv by
# hand stay. A set-up that was cut off has left no stamp and is taken up again.
.venv/.created:
	$(PYTHON) -m venv .venv
	@touch $@

# With progress, because it is the first thing that many people run.
.venv/.ready-demo: .venv/.torch
	@echo "Installing featnet, Pillow, NumPy and 17 MB of trained weights (featnet[demo])."
	$(INSTALL) -e '.[demo]' || $(INSTALL) -e '.[cli]'
	@touch $@

.venv/.torch: constraints.txt | .venv/.created
	@echo "Installing PyTorch: 0.2 GB for CPUs (TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "takes it on Linux), 3 GB with CUDA. It is cached by pip for the next time."
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

package: .venv/.ready-test
	$(PIP) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tools.try_wheel dist/*.whl

.venv/.ready: pyproject.toml constraints.txt .venv/.torch
	$(PIP) -e '.[cli]'
	@touch $@

.venv/.ready-docs: .venv/.ready
	$(PIP) -e '.[docs]'
	@touch $@

.venv/.ready-test: .venv/.ready
	$(PIP) -e '.[cli,test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
