"""Why a run failed and what would help: blame, headroom, remedies, forecasts."""
