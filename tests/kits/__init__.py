"""What tests share: small data, small runs, real S3 servers, a proxy that breaks things. One file a subject."""
