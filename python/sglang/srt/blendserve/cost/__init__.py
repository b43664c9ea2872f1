"""What work costs: model and device specifications, and the cost model (paper section 4)."""
