"""The benchmark's arithmetic, parsers, report and targets: all that needs no lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import (
    __main__,
    chart,
    clock,
    core,
    cures,
    latency,
    loads,
    matrix,
    programs,
    readme,
    report,
    targets,
    tcp,
    udp,
)
from bench.programs import Count
from bench.stats import Cell, Key, Sample, by_key, less, middle, paired, summarise

UNITS = {"tcp-bulk": ("Gbit/s", "us/MB"), "latency-spaced": ("us", "us/request")}


def key(cure: str, load: str = "tcp-bulk", cause: str = "snat") -> Key:
    return Key(cause, load, cure)


def cells_of(**values: list[float | None]) -> list[Cell]:
    """Cells of TCP bulk under snat; keywords are cures with _ for -."""
    return cells_at("snat", "tcp-bulk", **values)


def cells_at(cause: str, load: str, **values: list[float | None]) -> list[Cell]:
    named = {name.replace("_", "-"): series for name, series in values.items()}
    count = len(next(iter(named.values())))
    rounds = [
        {Key(cause, load, cure): Sample(series[n], cpu_us=1.0) for cure, series in named.items()}
        for n in range(count)
    ]
    order = [Key(cause, load, cure) for cure in named]
    return summarise(rounds, loads.UNITS, order)


def results_of(cells: list[Cell]) -> report.Results:
    return report.Results(host="h", kernel="k", cells=cells)


class TestStats:
    def test_ratios_are_paired_by_round_and_not_of_medians(self) -> None:
        # Medians are 20 and 20; in each round the cure was twice or half as fast.
        cells = by_key(cells_of(ethtool_off=[10.0, 20.0, 40.0], csumfix=[20.0, 40.0, 20.0]))
        ours = cells[key("csumfix")]
        assert ours.ratios == [2.0, 2.0, 0.5]
        assert ours.ratio_to_ethtool_off == 2.0
        assert (ours.ratio_min, ours.ratio_max) == (0.5, 2.0)
        assert (ours.median, ours.min, ours.max, ours.rounds) == (20.0, 20.0, 40.0, 3)

    def test_a_round_without_arrival_has_no_ratio(self) -> None:
        cells = by_key(cells_of(ethtool_off=[10.0, None, 10.0], csumfix=[20.0, 20.0, 20.0]))
        assert cells[key("csumfix")].ratios == [2.0, None, 2.0]

    def test_traffic_that_never_arrives_is_no_cure_and_no_number(self) -> None:
        cell = by_key(cells_of(ethtool_off=[1.0, 1.0], scapy=[None, None]))[key("scapy")]
        assert not cell.cures
        assert cell.median is None
        assert cell.ratio_to_ethtool_off is None

    def test_a_cell_given_up_after_the_first_round_counts_one_round(self) -> None:
        rounds = [{key("scapy"): Sample(None)}, {key("none"): Sample(1.0)}]
        cells = by_key(summarise(rounds, UNITS, [key("scapy"), key("none")]))
        assert cells[key("scapy")].rounds == 1
        assert cells[key("none")].values == [None, 1.0]

    def test_one_failure_in_three_rounds_is_an_accident(self) -> None:
        assert by_key(cells_of(scapy=[1.0, None, 1.0]))[key("scapy")].cures
        assert not by_key(cells_of(scapy=[1.0, None]))[key("scapy")].cures

    def test_without_baseline_there_is_no_ratio(self) -> None:
        assert by_key(cells_of(scapy=[1.0]))[key("scapy")].ratio_to_ethtool_off is None

    def test_unmeasured_cells_are_left_out(self) -> None:
        rounds = [{key("none"): Sample(1.0)}]
        assert len(summarise(rounds, UNITS, [key("none"), key("scapy")])) == 1

    def test_series(self) -> None:
        assert paired([1.0, None, 3.0, 4.0], [2.0, 1.0, None, 0.0]) == [0.5, None, None, None]
        assert less([3.0, None], [1.0, 1.0]) == [2.0, None]
        assert middle([None, 3.0, 1.0]) == 2.0
        assert middle([None]) is None


class TestLoads:
    def test_udp_rate_loss_order_and_cpu(self) -> None:
        sent, got = Count(100, 200, 0, 0, 0), Count(80, 150, 0, 0, 6)
        sample = udp.judge(sent, got, drops=50, seconds=0.5, busy=2.0)
        assert sample.value == pytest.approx(0.16)
        assert sample.loss == pytest.approx(0.25)
        assert sample.cpu_us == pytest.approx(12_500)
        assert sample.out_of_order == pytest.approx(12)

    def test_udp_that_the_receiver_drops_is_no_cure(self) -> None:
        sent, got = Count(10_000, 10_000, 0, 0, 0), Count(5, 5, 0, 0, 0)
        assert not udp.judge(sent, got, drops=9_000, seconds=1, busy=1).cures

    def test_udp_lost_before_a_slow_cure_is_still_a_cure(self) -> None:
        sent, got = Count(10_000, 10_000, 0, 0, 0), Count(50, 50, 0, 0, 0)
        assert udp.judge(sent, got, drops=0, seconds=1, busy=1).cures

    def test_udp_of_which_nothing_arrives_is_no_cure(self) -> None:
        sent, got = Count(100, 100, 0, 0, 0), Count(0, 0, 100, 0, 0)
        assert not udp.judge(sent, got, drops=0, seconds=1, busy=1).cures

    def test_messages_are_judged_by_what_the_kernels_counted_in_the_window(self) -> None:
        got = Count(125_000_000, 200_000_000, 0, 0, 0)
        before, after = tcp.Order(100, 7), tcp.Order(150, 8)
        sample = tcp.judge_messages(got, before, after, seconds=0.5, busy=1.0)
        assert sample.value == pytest.approx(2.0)
        assert sample.cpu_us == pytest.approx(4_000)
        assert (sample.out_of_order, sample.retransmitted) == (100, 2)

    def test_messages_that_do_not_arrive_or_are_changed_are_no_cure(self) -> None:
        order = tcp.Order(0, 0)
        for got in (Count(0, 0, 0, 0, 0), Count(1000, 1000, 1000, 0, 0)):
            assert not tcp.judge_messages(got, order, order, seconds=1, busy=1).cures

    def test_a_counter_is_found_by_its_name(self) -> None:
        text = "TcpExt: A TCPOFOQueue B\nTcpExt: 1 22 3\nIpExt: TCPOFOQueue\nIpExt: 9\n"
        assert tcp.counter(text, "TcpExt", "TCPOFOQueue") == 22

    def test_what_a_program_prints(self) -> None:
        assert programs.parse_count("ready\n1 2 3 4 5\n") == Count(1, 2, 3, 4, 5)

    def test_iperf_leaves_out_the_warm_up(self) -> None:
        def interval(start: float, size: int) -> dict[str, object]:
            return {"sum": {"start": start, "seconds": 0.25, "bytes": size}}

        document = {"intervals": [interval(0, 1), interval(0.25, 10**9), interval(0.5, 10**9)]}
        assert tcp.parse_iperf(document, 0.25) == pytest.approx(32)
        assert tcp.parse_iperf({"error": "x"}, 0.25) is None

    def test_sockperf(self) -> None:
        text = (
            "sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=1100; "
            "ReceivedMessages=1100\n"
            "sockperf: ---> percentile 99.990 = 2064.161\n"
            "sockperf: ---> percentile 99.900 =  717.108\n"
            "sockperf: ---> percentile 99.000 =   90.701\n"
            "sockperf: ---> percentile 50.000 =   48.181\n"
        )
        sample = latency.parse(text, busy=0.2)
        assert (sample.value, sample.p99, sample.p999) == (48.181, 90.701, 717.108)
        assert sample.cpu_us == pytest.approx(100)
        assert not latency.parse("sockperf: No messages were received", 0.2).cures

    def test_proc_stat(self) -> None:
        text = "cpu  100 10 200 9999 50 5 15 77 0 0\ncpu0 1 2 3\n"
        assert clock.parse_stat(text) == pytest.approx((9999 + 50 + 77) / 100)


class TestPlan:
    @staticmethod
    def full_run() -> list[Cell]:
        order = matrix.FULL.cells()
        sample = Sample(2.0, 1.0, p99=1.0, out_of_order=0.0, retransmitted=0.0)
        return summarise([dict.fromkeys(order, sample)], loads.UNITS, order)

    def test_every_target_can_be_evaluated_from_a_full_run(self) -> None:
        outcomes = targets.evaluate(by_key(self.full_run()))
        assert [one.what for one in outcomes if one.measured is None] == []

    def test_a_full_run_fills_readme_s_table_for_csumfix(self) -> None:
        text = readme.summary(results_of(self.full_run()))
        ours = [line for line in text.splitlines() if "**" in line]
        assert len(ours) == 3
        assert not [line for line in ours if "| |" in line.replace("|  |", "| |")]

    def test_a_full_run_draws_every_panel(self) -> None:
        cells = self.full_run()
        assert all(len(chart.bars(panel, cells)) > 2 for panel in chart.PANELS)

    @pytest.mark.parametrize("mode", [matrix.FULL, matrix.QUICK])
    def test_ratios_to_the_baseline_exist_everywhere(self, mode: matrix.Matrix) -> None:
        cells = set(mode.cells())
        for one in cells:
            assert Key(one.cause, one.load, "ethtool-off") in cells
            assert Key(one.cause, one.load, "none") in cells

    def test_filters(self) -> None:
        cells = matrix.FULL.cells(["snat"], ["tcp-bulk"], ["scapy", "none"])
        assert cells == [key("none"), key("scapy")]

    def test_the_ceiling_is_the_same_lab_under_every_cause(self) -> None:
        tracked = [cause for cause in matrix.CAUSES if cause != matrix.UNTRACKED]
        places = {matrix.lab_key(key("none", cause=cause)) for cause in tracked}
        assert places == {("healthy", "none", 1500)}
        assert matrix.lab_key(key("none", cause=matrix.UNTRACKED)) == ("untracked", "none", 1500)
        assert matrix.lab_key(key("scapy", "tcp-bulk-9000")) == ("snat", "scapy", 9000)


class TestReport:
    CELLS = staticmethod(
        lambda: cells_of(ethtool_off=[2.0, 4.0], csumfix=[3.0, 6.0], scapy=[None, None])
    )

    def test_json_has_what_was_promised_and_can_be_read_back(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "out.json"
        report.save(results_of(self.CELLS()), path)
        raw = json.loads(path.read_text())
        assert {"host", "kernel", "cells"} <= raw.keys()
        assert {
            "cause", "load", "cure", "unit", "median", "min", "max", "rounds",
            "ratio_to_ethtool_off", "cpu_us_per_packet",
        } <= raw["cells"][0].keys()  # fmt: skip
        assert report.load(path).cells == self.CELLS()

    def test_markdown_says_in_words_what_does_not_cure(self) -> None:
        text = report.markdown(results_of(self.CELLS()))
        assert "| scapy | - | - | does not cure | - |  |" in text
        assert "| csumfix | 1.00 | 1.00 | 4.50 | 1.50 |  |" in text

    def test_a_cell_says_what_was_lost_and_what_came_out_of_order(self) -> None:
        sample = Sample(1.0, 1.0, loss=0.25, out_of_order=1234.0, retransmitted=5.0)
        cells = summarise([{key("csumfix"): sample}], loads.UNITS, [key("csumfix")])
        text = report.markdown(results_of(cells))
        assert "25.00 % lost, 1,234/s out of order, 5.00/s sent again" in text

    def test_without_the_bug_figures_are_compared_to_no_cure(self) -> None:
        cells = cells_at("healthy", "tcp-bulk", none=[4.0], ethtool_off=[2.0], csumfix=[3.0])
        assert "| csumfix | 1.00 | 1.00 | 3.00 | 0.75 |  |" in report.markdown(results_of(cells))

    def test_other_work_on_the_machine_is_reported(self) -> None:
        results = results_of([])
        assert "other programs" not in report.heading(results)
        results.busy_cores = 0.7
        assert "other programs used 0.70 cores" in report.heading(results)

    def test_markdown_tables_are_rectangular(self) -> None:
        for text in (
            report.markdown(results_of(self.CELLS())),
            readme.summary(results_of(self.CELLS())),
        ):
            for table in text.split("\n\n"):
                rows = [line for line in table.splitlines() if line.startswith("|")]
                assert len({row.count("|") for row in rows}) <= 1, table

    def test_terminal_tables_fit_80_columns_and_cut_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide: list[float | None] = [0.0022, 1_234_567.0, 1.0]
        path = tmp_path / "out.json"
        cells = cells_of(**{name.replace("-", "_"): wide for name in cures.NAMES})
        report.save(results_of(cells), path)
        monkeypatch.setenv("COLUMNS", "80")
        shown = CliRunner().invoke(__main__.main, ["--compare-only", "--json", str(path)])
        assert shown.exit_code == 0, shown.output
        assert max(map(len, shown.output.splitlines())) <= 80
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown.output
        for name in cures.NAMES:
            assert f"\n{name} " in shown.output

    def test_notes_are_shown_whole_in_80_columns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "out.json"
        sample = Sample(1.0, loss=0.0595, out_of_order=1234.0)
        cells = summarise([{key("csumfix"): sample}], UNITS, [key("csumfix")])
        report.save(results_of(cells), path)
        monkeypatch.setenv("COLUMNS", "80")
        shown = CliRunner().invoke(__main__.main, ["--compare-only", "--json", str(path)])
        assert "5.95 % lost, 1,234/s out of order" in " ".join(shown.output.split())

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "-"), (1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.0, "0.00")],
    )
    def test_numbers(self, value: float | None, text: str) -> None:
        assert report.number(value) == text

    def test_small_ratios_keep_their_digits(self) -> None:
        assert report.ratio(0.00345) == "0.0034"
        assert report.ratio(1.666) == "1.67"
        assert report.ratio(457.2) == "457"
        assert report.ratio(-3.0) == "-3.00"


class TestComparing:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "out.json"
        report.save(results_of(cells_of(none=[2.0], ethtool_off=[2.0], csumfix=[4.0])), path)
        return path

    def test_it_shows_the_goals_and_writes_nothing(self, path: Path) -> None:
        shown = CliRunner().invoke(__main__.main, ["--compare-only", "--json", str(path)])
        assert shown.exit_code == 0, shown.output
        assert "TCP bulk" in shown.output
        assert ">= 1.6" in shown.output
        assert list(path.parent.iterdir()) == [path]

    def test_it_writes_when_asked(self, path: Path) -> None:
        arguments = ["--compare-only", "--write", "--json", str(path)]
        shown = CliRunner().invoke(__main__.main, arguments)
        assert shown.exit_code == 0, shown.output
        assert sorted(one.suffix for one in path.parent.iterdir()) == [".json", ".md", ".png"]

    def test_a_missing_file_is_one_line(self, tmp_path: Path) -> None:
        arguments = ["--compare-only", "--json", str(tmp_path / "none.json")]
        shown = CliRunner().invoke(__main__.main, arguments)
        assert shown.exit_code == 1
        assert "does not exist; run 'make bench' first" in shown.output


class TestReadme:
    def test_cells_show_figure_and_ratio(self) -> None:
        cells = [
            *cells_at("healthy", matrix.FIXED, none=[4.0], csumfix=[4.0]),
            *cells_at("snat", "tcp-bulk", ethtool_off=[2.0], csumfix=[3.0], scapy=[None]),
        ]
        text = readme.summary(results_of(cells))
        assert "| **csumfix run** | 1.00 (1.00) |  |  |  |  |  | 3.00 (1.50) |  |  |" in text
        assert "| NetfilterQueue and scapy |  |  |  |  |  |  | does not cure |  |  |" in text

    def test_readme_and_docs_show_the_latest_run(self) -> None:
        latest = report.load(report.LATEST)
        assert readme.FULL.read() == readme.summary(latest)
        assert readme.BRIEF.read() == readme.brief(latest)


class TestChart:
    def test_bars_keep_the_order_of_cures_and_say_what_does_not_cure(self) -> None:
        panel = chart.Panel("snat", "tcp-bulk", "TCP")
        cells = cells_of(scapy=[None], csumfix_queue=[1.0], ethtool_off=[2.0])
        found = chart.bars(panel, cells)
        assert [bar.cure for bar in found] == ["ethtool-off", "scapy", "csumfix-queue"]
        assert [bar.ratio for bar in found] == [1.0, None, 0.5]

    def test_a_panel_without_its_base_is_empty(self) -> None:
        panel = chart.Panel("snat", "tcp-bulk", "TCP")
        assert chart.bars(panel, cells_of(scapy=[1.0])) == []

    def test_cpu_per_packet_comes_first(self) -> None:
        assert [panel.field for panel in chart.PANELS[:3]] == ["cpu_values"] * 3

    def test_a_bar_that_is_cut_is_known_as_such_and_its_number_tells(self) -> None:
        bar = chart.Bar("scapy", 58.7, 50.0, 60.0)
        assert bar.cut
        assert bar.label == "58.7"
        whisker = chart.Bar("scapy", 1.5, 1.0, 60.0)
        assert not whisker.cut
        assert whisker.label == "1.50 (to 60.0)"


class TestTargets:
    @staticmethod
    def find(
        outcomes: list[targets.TargetOutcome], what: str, against: str
    ) -> targets.TargetOutcome:
        found = [one for one in outcomes if what in one.what and against in one.against]
        assert len(found) == 1, found
        return found[0]

    def test_met_and_missed(self) -> None:
        cells = by_key(
            cells_of(ethtool_off=[2.0], csumfix=[3.0], csumfix_queue=[1.7], checksum_target=[3.0])
        )
        outcomes = targets.evaluate(cells)
        assert self.find(outcomes, "queue lane", "ethtool-off").met is True
        bulk = [one for one in outcomes if one.what == "snat: TCP bulk"]
        assert [(one.against, one.met) for one in bulk] == [
            ("ethtool-off", False),
            ("checksum-target", True),
        ]

    def test_nothing_measured_is_neither(self) -> None:
        assert {one.met for one in targets.evaluate({})} == {None}

    def test_cpu_is_compared_at_the_fixed_rate(self) -> None:
        rounds = [
            {
                Key("snat", matrix.FIXED, "ethtool-off"): Sample(40.0, cpu_us=10.0),
                Key("snat", matrix.FIXED, "csumfix"): Sample(40.0, cpu_us=ours),
            }
            for ours in (10.2, 10.4, 11.0)
        ]
        cells = by_key(summarise(rounds, loads.UNITS, list(rounds[0])))
        outcome = self.find(targets.evaluate(cells), "snat: CPU", "ethtool-off")
        assert outcome.measured == pytest.approx(1.04)
        assert outcome.met

    @pytest.mark.parametrize(("ours", "met"), [(20.0, True), (4000.0, False)])
    def test_order_is_that_of_no_cure_but_for_noise(self, ours: float, met: bool) -> None:
        one = {
            key("none", "tcp-messages"): Sample(1.0, out_of_order=4.0),
            key("csumfix", "tcp-messages"): Sample(1.0, out_of_order=ours),
        }
        cells = by_key(summarise([one], loads.UNITS, list(one)))
        outcome = self.find(targets.evaluate(cells), "snat: extra out of order", "none")
        assert outcome.measured == ours - 4
        assert outcome.met is met

    def test_the_tap_is_judged_by_the_rounds_of_all_causes(self) -> None:
        load = "udp-saturating-512-1"
        cells = by_key(
            [
                *cells_at("snat", load, kernel_rules=[100.0], csumfix=[98.0]),
                *cells_at("dnat", load, kernel_rules=[100.0], csumfix=[99.5]),
                *cells_at("healthy", load, kernel_rules=[100.0], csumfix=[101.0]),
            ]
        )
        outcome = self.find(targets.evaluate(cells), "tap: UDP", "kernel-rules")
        assert (outcome.low, outcome.high) == (0.98, 1.01)
        assert outcome.measured == pytest.approx(0.995)
        assert outcome.met

    def test_read_and_exit_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "out.json"
        report.save(results_of(cells_of(ethtool_off=[2.0], csumfix_queue=[1.0])), path)
        assert targets.main([str(path)]) == 1
        assert "missed" in capsys.readouterr().out
        assert targets.main([str(tmp_path / "none.json")]) == 2


class TestCore:
    def test_each_build_of_dpdk_is_compared_round_by_round(self) -> None:
        times = {
            ("repair-right", 1478): [50.0, 100.0],
            ("rte_raw_cksum", 1478): [100.0, 300.0],
            ("rte_raw_cksum-native", 1478): [120.0, 150.0],
        }
        assert core.to_dpdk(times, 1478) == pytest.approx(2.5)
        assert core.to_dpdk(times, 1478, "rte_raw_cksum-native") == pytest.approx(1.95)

    def test_without_dpdk_there_is_no_ratio(self) -> None:
        assert core.to_dpdk({("repair-right", 1478): [50.0]}, 1478) is None

    def test_lines_of_the_program(self) -> None:
        assert list(core.parse_times("scalar 64 12.500\n")) == [("scalar", 64, 12.5)]
