# Read by each project() of llama-cpp-python. llama.cpp's own programs share a library that takes half of the compile, and
# llama-cpp-python switches it on in the cache: a plain variable comes before it.
set(LLAMA_BUILD_COMMON OFF)
