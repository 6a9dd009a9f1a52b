# make run: everything from a clean clone to the page.  make test: everything CI checks.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Linux needs the CPU build by name: PyPI's own Linux wheel of torch brings several GB of CUDA packages.
# With an NVIDIA card: make run TORCH='torch>=2.6,<2.14'
ifeq ($(shell uname -s),Linux)
TORCH  ?= torch==2.13.0+cpu
else
TORCH  ?= torch>=2.6,<2.14
endif
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Panza's own kernels need a C++ compiler; without one torch does the work.
NATIVE := $(if $(shell command -v $(or $(CXX),c++) 2>/dev/null),1,0)
SOURCES := pyproject.toml $(wildcard kernels/CMakeLists.txt kernels/*.cpp kernels/cpu/*.?pp kernels/cpu/isa/*.?pp)

.PHONY: run test install check clean
run: $(VENV)/.installed
	$(BIN)/panza demo

install: $(VENV)/.installed

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Panza needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)' 2>/dev/null || $(BIN)/pip install --disable-pip-version-check --index-url $(TORCH_INDEX) '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	@echo "Installing Panza and its libraries (about 1.3 GB, one to three minutes)"
	PANZA_NATIVE=$(NATIVE) $(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	PANZA_NATIVE=$(NATIVE) $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV)
