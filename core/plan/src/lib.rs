//! Tongtu: plans, bundles and the back-end traits
