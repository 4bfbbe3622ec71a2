"""Recurrent layers as single ops, each with its backward: eager's own kernels, where they are more than small ops."""
