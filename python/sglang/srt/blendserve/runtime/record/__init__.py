"""What steps did: records, metrics, the step trace and feedback to the pace."""
