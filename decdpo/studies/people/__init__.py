"""Personalised models of people who rate items: FedPDPO."""
