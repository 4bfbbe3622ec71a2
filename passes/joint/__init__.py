"""Passes over the joint graph of one micro-batch."""
