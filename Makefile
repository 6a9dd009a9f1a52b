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

.PHONY: run test install check sanitize clean
run: $(VENV)/.installed
	$(BIN)/panza demo

install: $(VENV)/.installed

test: $(VENV)/.installed-test $(VENV)/.llama
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

# llama.cpp, to read what is exported for it: two minutes on two cores without what nobody here calls. Without a compiler
# its tests are skipped.
LLAMA_CMAKE := -DCMAKE_PROJECT_INCLUDE=$(CURDIR)/tests/compress/llama.cmake -DLLAVA_BUILD=OFF -DLLAMA_BUILD_MTMD=OFF \
 -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_ALL_WARNINGS=OFF \
 -DCMAKE_C_FLAGS_RELEASE='-O1 -DNDEBUG' -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG'

$(VENV)/.llama: $(VENV)/.installed-test
	@echo "Compiling llama.cpp for its tests (one to three minutes)"
	CMAKE_ARGS="$(LLAMA_CMAKE)" $(BIN)/pip install --quiet --disable-pip-version-check 'llama-cpp-python>=0.3.36,<0.4' || \
		echo "llama.cpp could not be built: its tests will be skipped"
	@touch $@

# The kernels with AddressSanitizer and UndefinedBehaviorSanitizer (GCC on Linux) under their tests, as each instruction
# set; then the usual ones again.
SANITIZED := ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"
EDITABLE := pip install --quiet --disable-pip-version-check --no-deps --editable .

sanitize: $(VENV)/.installed-test
	@rm -f $(VENV)/.installed
	$(BIN)/$(EDITABLE) -C build-dir=build/sanitize -C cmake.define.PANZA_SANITIZE=ON
	@sets=$$($(SANITIZED) $(BIN)/python -c 'from compress import _kernels; print(*_kernels.isas())') && status=0 && \
	for isa in $$sets; do \
		echo "As $$isa"; $(SANITIZED) PANZA_ISA=$$isa OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		tests/kernels tests/compress/test_damage.py tests/compress/test_viterbi.py || status=1; done; \
	$(BIN)/$(EDITABLE) && touch $(VENV)/.installed $(VENV)/.installed-test; exit $$status

clean:
	rm -rf $(VENV)
