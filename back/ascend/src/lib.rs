//! Tongtu: the Ascend back end
