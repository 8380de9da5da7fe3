"""Prepare a finished network for a machine: fold, pack, re-parameterise, export."""
