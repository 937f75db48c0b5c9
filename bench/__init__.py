"""Benchmarks of rnla against its peers: ``python -m bench svd --quick``; ``python -m bench --help`` lists the rest."""
