"""Runs a federation across machines: certificates, Flower's processes, and an experiment handed to them.

flwr's programs are started as they are; nothing here imports flwr.
"""
