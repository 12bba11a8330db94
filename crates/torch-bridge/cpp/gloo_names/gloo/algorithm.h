#pragma once
// Included by ProcessGroupGloo.hpp, which names nothing of it.
