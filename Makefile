# make demo       set up .venv and run the main job on a real photograph
# make test       set up .venv with the test extras and run the whole suite
# make peers      add timm and torchvision, which the tests compare with, from the package index
# make consumers  add the libraries that the tests run over featnet, after the peers
# make bench      the figures in benchmarks/
# make clean      remove .venv and what was built

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test bench setup peers consumers clean

demo: .venv/.ready
	$(BIN)/featnet extract examples/chelsea.png --model resnet50 --out-indices 1 2 3 4 \
	    --output-stride 8 --out build/demo

test: .venv/.ready-test
	$(BIN)/python -m pytest -n auto --dist loadgroup

bench: .venv/.ready-test
	$(BIN)/python -m benchmarks

# The whole environment without running anything.
setup: .venv/.ready-test

# What timm needs besides is there already.
peers: .venv/.ready-test
	$(PIP) --no-deps timm torchvision

# Of the last line's two modules are run, which need none of what the whole libraries do.
consumers: .venv/.ready-test
	$(PIP) -e '.[cli,demo,test,consumers]'
	$(PIP) --no-deps anomalib mmsegmentation mmengine addict yapf termcolor platformdirs

# Only the stamps decide whether anything is installed, so packages that were added to .venv by
# hand stay. A set-up that was cut off has left no stamp and is taken up again.
.venv/.created:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.ready: pyproject.toml constraints.txt | .venv/.created
	$(PIP) -e '.[cli]'
	@touch $@

.venv/.ready-test: .venv/.ready
	$(PIP) -e '.[cli,test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
