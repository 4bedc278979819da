"""Linear and logistic regression against scikit-learn: gradient descent to convergence."""

import numpy as np
import optax
import pandas as pd
import pytest
import sklearn.linear_model
import sklearn.metrics

import jaxrec
from jaxrec import data, models

SCHEMA = data.Schema(user=None, item=None, target="y", context=(data.Vector("x"),))


def problem(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_000, 20)) @ (np.eye(20) + 0.05 * rng.normal(size=(20, 20)))
    weights, noise = rng.normal(size=20), rng.normal(size=10_000)
    if kind == "linear":
        return x, x @ weights + 1.5 + noise
    return x, (rng.random(10_000) < 1 / (1 + np.exp(-(x @ weights / 3 + 0.5)))).astype(float)


def fitted(x, y, *, epochs, **options):
    frame = pd.DataFrame({"x": list(x), "y": y})
    train = data.Encoder.fit(frame, SCHEMA).encode(frame)
    model = models.Linear.for_data(train, **options)
    return jaxrec.fit(model, train, batch_size=None, epochs=epochs, optimizer=optax.sgd(0.2, momentum=0.9)), train


def test_linear_regression_reaches_scikit_learn():
    x, y = problem("linear")
    recommender, train = fitted(x, y, epochs=300)
    reference = sklearn.linear_model.LinearRegression().fit(x, y)
    np.testing.assert_allclose(recommender.params["context"]["kernel"], reference.coef_, atol=1e-3)
    assert float(recommender.params["bias"]) == pytest.approx(reference.intercept_, abs=1e-3)
    rmse = sklearn.metrics.mean_squared_error(y, reference.predict(x)) ** 0.5
    assert jaxrec.evaluate(recommender, train)["rmse"] == pytest.approx(rmse, abs=1e-4)


@pytest.mark.parametrize("c", [1.0, 0.001])
def test_logistic_regression_reaches_scikit_learn(c):
    x, y = problem("logistic")
    recommender, train = fitted(x, y, epochs=600, link="sigmoid", l2=1 / (c * len(y)))
    reference = sklearn.linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(recommender.params["context"]["kernel"], reference.coef_[0], atol=1e-3)
    assert float(recommender.params["bias"]) == pytest.approx(float(reference.intercept_[0]), abs=1e-3)
    loss = sklearn.metrics.log_loss(y, reference.predict_proba(x)[:, 1])
    report = jaxrec.evaluate(recommender, train)
    assert report["log_loss"] == pytest.approx(loss, abs=1e-4)
    assert report["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, reference.predict_proba(x)[:, 1]), abs=1e-4)


def test_three_points():
    x, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0.0, 1.0, 1.0])
    linear, train = fitted(x, y, epochs=600)
    reference = sklearn.linear_model.LinearRegression().fit(x, y)
    np.testing.assert_allclose(linear.params["context"]["kernel"], reference.coef_, atol=1e-3)
    assert float(linear.params["bias"]) == pytest.approx(reference.intercept_, abs=1e-3)
    assert jaxrec.evaluate(linear, train)["rmse"] == pytest.approx(0.0, abs=1e-4)
    logistic, train = fitted(x, y, epochs=400, link="sigmoid", l2=1 / 3)
    reference = sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(logistic.params["context"]["kernel"], reference.coef_[0], atol=1e-3)
    assert float(logistic.params["bias"]) == pytest.approx(float(reference.intercept_[0]), abs=1e-3)
    loss = sklearn.metrics.log_loss(y, reference.predict_proba(x)[:, 1])
    assert jaxrec.evaluate(logistic, train)["log_loss"] == pytest.approx(loss, abs=1e-4)


def test_minibatches_of_the_default_optimiser_come_close():
    x, y = problem("linear")
    frame = pd.DataFrame({"x": list(x), "y": y})
    train = data.Encoder.fit(frame, SCHEMA).encode(frame)
    recommender = jaxrec.fit(models.Linear.for_data(train), train, epochs=30, batch_size=256)
    reference = sklearn.linear_model.LinearRegression().fit(x, y)
    np.testing.assert_allclose(recommender.params["context"]["kernel"], reference.coef_, atol=0.1)
