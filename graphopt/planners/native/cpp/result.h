// A schedule that was found, until the caller, who knows then how long it is, takes it.
#pragma once

#include "problem.h"

// Its length.
i64 keep(Ints schedule);
