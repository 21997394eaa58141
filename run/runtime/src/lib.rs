//! Tongtu: the executor of plans
