"""Add the option of the suites."""


def pytest_addoption(parser):
    parser.addoption("--tiny", action="store_true", help="only check that everything runs; the times mean nothing")
