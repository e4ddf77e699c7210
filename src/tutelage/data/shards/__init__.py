"""Pools of images in tar and Parquet shards."""
