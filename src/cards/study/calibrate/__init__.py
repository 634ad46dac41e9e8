"""Calibrations: find r*, tau_u and beta for a model and a reward from samples, and check the choice by decoding."""
