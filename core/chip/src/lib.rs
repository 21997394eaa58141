//! Tongtu: chip descriptions
