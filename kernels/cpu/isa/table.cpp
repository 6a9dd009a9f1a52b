#include "here.hpp"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace panza::PANZA_ISA {

extern const Isa TABLE;
const Isa TABLE = {TEXT(PANZA_ISA), &GRID, &LUT, &ADDITIVE, &TRELLIS, &MATMUL, &MATMUL8, &NUMERICS, &STEPS, &SEARCH};

}  // namespace panza::PANZA_ISA
