"""Diagnosis for ``python -m crepe_dist doctor``: can this machine train?"""
