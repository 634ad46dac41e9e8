"""Which r*, tau_u and beta for these models: sampled once, predicted for every setting, chosen by wish, then tried."""
