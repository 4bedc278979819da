"""What is tried for each way of transfer, of sparse (Amazon) and of dense pairs of domains."""

import harness

SPARSE = [
    {"dim": 128, "unobserved": 0.003, "l2": 0.03},
    {"dim": 128, "unobserved": 0.003, "l2": 0.05},
    {"dim": 128, "unobserved": 0.001, "l2": 0.05},
    {"dim": 256, "unobserved": 0.003, "l2": 0.05},
]
MORE = [  # for stacked iALS, which others are measured by
    {"dim": 256, "unobserved": 0.003, "l2": 0.03},
    {"dim": 256, "unobserved": 0.001, "l2": 0.05},
    {"dim": 128, "unobserved": 0.01, "l2": 0.01},
    {"dim": 128, "unobserved": 0.3, "l2": 0.01},
    {"dim": 128, "unobserved": 0.003, "l2": 0.3, "exponent": 0.5},
    {"dim": 128, "unobserved": 0.003, "l2": 0.5, "exponent": 0.5},
    {"dim": 256, "unobserved": 0.003, "l2": 0.3, "exponent": 0.5},
    {"dim": 128, "unobserved": 0.003, "l2": 0.04},
    {"dim": 128, "unobserved": 0.003, "l2": 0.07},
    {"dim": 128, "unobserved": 0.005, "l2": 0.03},
    {"dim": 128, "unobserved": 0.002, "l2": 0.04},
    {"dim": 256, "unobserved": 0.005, "l2": 0.03},
    {"dim": 64, "unobserved": 0.003, "l2": 0.03},
    {"dim": 64, "unobserved": 0.003, "l2": 0.05},
    {"dim": 64, "unobserved": 0.001, "l2": 0.05},
]
EVEN = [  # for cold users of games and videos: with them it has as many settings as the blend of three in all
    {"dim": dim, "unobserved": unobserved, "l2": l2, "exponent": 0.5}
    for dim, unobserved, l2 in (
        (128, 0.002, 0.5), (128, 0.005, 0.5), (128, 0.003, 0.7), (128, 0.003, 1.0), (256, 0.003, 0.7), (128, 0.01, 0.3),
    )
] + [
    {"dim": dim, "unobserved": unobserved, "l2": l2}
    for dim, unobserved, l2 in (
        (128, 0.005, 0.04), (128, 0.007, 0.03), (128, 0.005, 0.02), (192, 0.005, 0.03), (192, 0.003, 0.04),
        (256, 0.005, 0.04), (128, 0.01, 0.02), (96, 0.005, 0.03), (128, 0.003, 0.02), (160, 0.004, 0.035),
    )
]  # fmt: skip
OWN = [  # of what is trained on a domain: those above, the even ones, and one that its target alone preferred
    *SPARSE,
    *(each for each in MORE if "exponent" in each),
    {"dim": 128, "unobserved": 0.003, "l2": 0.07},
]
COLD = [  # the same for cold users of games and videos: two of the above, and two such as the stacked ones preferred
    *(SPARSE[0], SPARSE[3]),
    {"dim": 128, "unobserved": 0.005, "l2": 0.5, "exponent": 0.5},
    {"dim": 128, "unobserved": 0.01, "l2": 0.3, "exponent": 0.5},
]
DENSE = [{"dim": 64, "unobserved": each, "l2": l2} for each in (0.03, 0.1, 0.3, 1.0) for l2 in (0.01, 0.03)]
BPR = [{"dim": 64, "rate": 0.01, "decay": decay, "epochs": 20} for decay in (0.3, 1.0, 3.0, 10.0)]
KINDS = ("linear", "mlp")
DECAYS = (1.0, 3.0, 10.0, 30.0)
DENSE_MORE = [{"dim": 64, "unobserved": each, "l2": l2} for each in (0.03, 0.1, 0.3, 1.0) for l2 in (0.003, 0.1)]
EASE = harness.grid(l2=(100.0, 300.0, 1000.0, 3000.0))
EASE_SPARSE = harness.grid(l2=(200.0, 600.0, 2000.0))  # each inverts a matrix of up to 37,000 items
KNN = harness.grid(shrink=(10.0, 100.0, 1000.0, 10000.0), neighbours=(300,))
# Of the target alone, which every gain is over: wider, since validation asked for the edges.
EASE_ALONE = harness.grid(l2=(30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0))
KNN_ALONE = harness.grid(shrink=(3.0, 10.0, 100.0, 1000.0, 10000.0), neighbours=(300,))
