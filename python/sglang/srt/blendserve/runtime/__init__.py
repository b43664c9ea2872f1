"""Inside SGLang's scheduler process: where the policy meets SGLang."""
