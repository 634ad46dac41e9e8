"""Rewards score text."""
