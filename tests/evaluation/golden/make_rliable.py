"""Numbers that rliable 1.2.0 gives, for test_statistics.py. It was archived in 2025 and needs pandas < 3, so:

python -m venv /tmp/rliable && /tmp/rliable/bin/pip install rliable==1.2.0 'pandas<3'
/tmp/rliable/bin/python tests/evaluation/golden/make_rliable.py > tests/evaluation/golden/rliable.json
"""

import json
import sys

import numpy as np
from rliable import library, metrics

cases = []
for runs, tasks in ((3, 1), (5, 1), (10, 1), (7, 3), (10, 4)):
    noise = np.random.Generator(np.random.Philox(key=100 * runs + tasks))
    x = np.round(noise.normal(0.3, 1.0, (runs, tasks)), 1)  # rounded: ties happen
    y = np.round(noise.standard_t(3, (runs, tasks)), 1)
    thresholds = np.linspace(-2, 2, 9)
    _, interval = library.get_interval_estimates(
        {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=20_000, random_state=np.random.RandomState(1)
    )
    cases.append(
        {
            "x": x.T.tolist(),
            "y": y.T.tolist(),
            "iqm": [metrics.aggregate_iqm(x), metrics.aggregate_iqm(y)],
            "interval": interval["x"][:, 0].tolist(),
            "improvement": metrics.probability_of_improvement(x, y),
            "thresholds": thresholds.tolist(),
            "profile": [library.run_score_deviation(x, t) for t in thresholds],
        }
    )
json.dump({"rliable": "1.2.0", "cases": cases}, sys.stdout, indent=1)
