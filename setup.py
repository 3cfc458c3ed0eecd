"""Maps the top-level kernels/ folder to fastgan.kernels; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastgan", "fastgan.*"]), "fastgan.kernels"],
    package_dir={"fastgan": "fastgan", "fastgan.kernels": "kernels"},
    package_data={"fastgan.kernels": ["tuning/*.json"]},
)
