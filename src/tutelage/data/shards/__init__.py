"""Pools of unlabelled images in tar and Parquet shards."""
