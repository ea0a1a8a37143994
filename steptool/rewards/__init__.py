"""Annotators score steps; composition turns scores into rewards."""
