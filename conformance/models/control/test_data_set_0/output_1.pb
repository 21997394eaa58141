BlastJeVÃ>RV?
Î>î.?