"""Tables in and out: requests and answers as Parquet files."""
