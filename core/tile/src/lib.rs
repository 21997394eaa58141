//! Tongtu: the portable tile instruction set
