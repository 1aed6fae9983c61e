"""decdpo: decentralized Direct Preference Optimization over MPI."""

__version__ = "0.1.0"
