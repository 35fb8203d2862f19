"""Which test runs which documented command, and why the others are run by none."""

_GENERATIONS = "tests/server/test_generations_cli.py::test_ship_and_take_back"
_PROMTOOL = "tests/deploy/test_prometheus_rules.py::test_alerts_fire_when_they_should_and_not_when_they_should_not"
_GRID = "tests/adapters/benchmark/test_grid.py::test_a_grid_is_widened_and_nothing_is_run_twice"
_BANK = "tests/adapters/bank/test_cli.py::test_use_gc_export_import"

RUN_BY = {
    "seta serve": "tests/conftest.py::server_process",
    "seta learn": "tests/test_pipeline.py::test_learn_then_serve_then_chat",
    "seta learn --preset": "tests/adapters/test_cli.py::test_cli_takes_a_preset_and_single_settings",
    "seta learn --activate": "tests/server/test_generations_cli.py::test_the_command",
    "seta openapi": "tests/server/test_openapi.py::test_the_command_prints_it",
    "seta keys new": "tests/server/test_cli.py::test_a_new_key_is_added_to_a_file_of_its_owners_own",
    "seta generations list": "tests/server/test_generations_cli.py::test_list",
    "seta generations experts": "tests/server/test_generations_cli.py::test_experts",
    "seta generations upload": "tests/server/test_generations_cli.py::test_upload_of_a_generation_and_of_an_archive",
    "seta generations activate": _GENERATIONS,
    "seta generations activate --all": "tests/server/test_generations_cli.py::test_activate_on_all_replicas",
    "seta generations rollback": _GENERATIONS,
    "seta generations pin": _GENERATIONS,
    "seta generations unpin": _GENERATIONS,
    "seta generations retire": _GENERATIONS,
    "seta bank show": "tests/adapters/bank/test_cli.py::test_show",
    "seta bank verify": "tests/adapters/bank/test_cli.py::test_verify",
    "seta bank gc": _BANK,
    "seta bank use": _BANK,
    "seta bank export": _BANK,
    "seta bank import-lora": "tests/adapters/lora/test_importing.py::test_cli",
    "seta bank export-lora": "tests/adapters/lora/test_exporting.py::test_cli",
    "seta loadtest": "tests/loadtest/test_cli.py::test_a_run_leaves_three_files_and_a_table",
    "seta loadtest compare": "tests/loadtest/test_cli.py::test_compare_prints_ratios_and_can_fail",
    "seta loadtest --scenario hot-add": "tests/loadtest/test_hot_add.py::test_ctrl_c_restores_what_served",
    "seta loadtest --scenario overload": "tests/loadtest/test_run.py::test_overload_measures_the_capacity_first",
    "python -m loadtest": "tests/loadtest/test_hot_add.py::test_ctrl_c_restores_what_served",
    "python -m loadtest.accuracy": "tests/loadtest/test_accuracy.py::test_the_command",
    "python -m adapters.benchmark": _GRID,
    "python -m adapters.benchmark speed": "tests/chaos/test_speed_figure.py::speed",
    "python -m adapters.demo.build": "tests/conftest.py::demo_tests",
    "python -m seta_runtime.bench.counting": "tests/seta_runtime/bench/test_counting.py::test_the_command",
    "python -m seta_runtime.bench.scale": "tests/seta_runtime/bench/test_scale.py::test_the_command",
    "curl /v1/route": "tests/server/test_explain_http.py::test_it_is_the_decision_that_an_answer_begins_with",
    "promtool test": _PROMTOOL,
    "python -m venv build/clients": "tests/clients/test_evaluation.py::tools",
    "build/clients/bin/pip install": "tests/clients/test_evaluation.py::tools",
    "build/clients/bin/lm_eval run": "tests/clients/test_evaluation.py::test_lm_eval",
    "build/clients/bin/inspect eval": "tests/clients/test_evaluation.py::test_inspect",
    "make demo": "tests/deploy/test_demo.py::test_a_signal_ends_everything",
}
"""Command → file and function. A command with an option named here is another one than without."""

NOT_RUN = {
    "make test": "runs the tests",
    "make test-chaos": "runs tests; tests/deploy/test_makefile.py has what it sets up, as of the next two",
    "make test-console": "runs tests",
    "make test-clients": "runs tests",
    "make bench": "half an hour; calls python -m seta_runtime.bench",
    "make accuracy": "minutes; its two commands are run by tests/conftest.py and tests/adapters/test_cli.py",
    "make demo-bank": "half an hour; tests/test_pipeline.py measures the bank that it makes",
    "pip install": "CI installs from requirements/cpu.lock, which tests/test_packaging.py compares with the extras",
    "cd deploy/prometheus": "goes before promtool",
    "cd deploy/ray": "goes before Ray's command",
    "serve run": "Ray's command; tests/deploy/test_ray.py has what it is given, tests/chaos/test_ray.py runs it",
    "python -m deploy.vendor": "asks the npm registry; tests/server/test_console.py compares the files' digests",
    "python -m tests.console.screenshots": "takes pictures for docs/, of a running server",
    "python -m seta_runtime.bench": "engines for half an hour; tests/seta_runtime/bench covers their parts",
    "python -m seta_runtime.bench.big": "an engine for minutes; tests/seta_runtime/bench/test_big.py covers its parts",
}
