"""The cache: codecs, the Parquet schema and its shards."""
