"""These tests need packages that no other test has; `make clients` runs them."""

import os

collect_ignore_glob = [] if "HEADLIGHT_CLIENTS_URL" in os.environ else ["test_*.py"]

# Nobody but the server is asked for anything, neither for data sets nor for lists of prices.
os.environ |= {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
