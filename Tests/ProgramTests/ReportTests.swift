import Foundation
import Testing

/// What Scripts/ab says below its table.
@Suite struct VerdictOfTheComparison {
  static let cases = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from verdict import interval, words
    def said(mine, others, better):
        found = interval(mine, others)
        return words(found, found, better).split(" (")[0]
    print(said([1, 1.1, 0.9, 1, 1.2], [10, 11, 9, 10, 10], "lower"))
    print(said([1, 1.1, 0.9, 1, 1.2], [10, 11, 9, 10, 10], "higher"))
    print(said([10, 11, 9, 10, 10], [1, 1.1, 0.9, 1, 1.2], "higher"))
    # The medians differ, 1 and 1.2, and the rounds overlap.
    print(said([1, 0.8, 1.3, 0.9, 1.4], [1.2, 0.7, 1.3, 0.9, 1.4], "lower"))
    # However clear: too few.
    print(said([1] * 4, [10] * 4, "lower"))
    # Nothing to divide by.
    print(said([1] * 5, [0] * 5, "lower"))
    """

  @Test("a verdict says what its interval allows, and nothing after few rounds")
  func words() throws {
    #expect(
      try outputOfLibrary(Self.cases).split(separator: "\n") == [
        "better", "worse", "better", "no difference shown", "nothing shown: fewer than 5 rounds, or a figure of 0",
        "nothing shown: fewer than 5 rounds, or a figure of 0",
      ])
  }
}

/// Its axes.
@Suite struct AxesOfTheReport {
  @Test("ticks are round, tell themselves apart, and reach the top")
  func ticks() throws {
    let output = try outputOfLibrary(
      """
      import re, sys
      sys.path.insert(0, sys.argv[1])
      from report import ticks
      print(ticks(1411))
      for top in [10 ** (i / 7) for i in range(-21, 70)]:
          found = re.findall(r"'(\\S+)' ([0-9.e+-]+)", ticks(top))
          values = [float(value) for _, value in found]
          if not 4 <= len(found) <= 9 or len({label for label, _ in found}) != len(found) or not 0.6 * top < values[-1] <= 1.12 * top:
              print(top, found)
      """)
    #expect(output == "'0' 0, '0.5k' 500, '1k' 1000, '1.5k' 1500\n")
  }
}

extension OneAtATime {
  /// The page of Scripts/ab --report, as a browser shows it.
  @Suite(
    .serialized, .enabled(if: Topology.available.contains(.local)),
    .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/chromium"), "chromium is not installed: Scripts/setup"))
  struct Report {
    struct Page: Decodable {
      struct Line: Decodable {
        let colour: String
        let length: Double
      }
      struct Figure: Decodable {
        let texts: [String]
        let width, height: Double
        let lines: [Line]
      }
      let figures: [Figure]
      let pixels: [String: Int]
    }

    /// As the report draws the kernel and Machnet.
    static let colours = ["#4477aa": "rgb(68, 119, 170)", "#cc3311": "rgb(204, 51, 17)"]

    @Test(
      "plots are there, and in one file",
      arguments: [
        ("sockperf-pp", ["latency, all rounds", "latency under load"]),
        ("sockperf-tp", ["datagrams against size", "throughput against size", "throughput against number of sockets"]),
      ])
    func plots(_ workload: String, _ titles: [String]) throws {
      try withBench(.kernel) { bench in
        let report = bench.directory.appending(path: "report").path
        let script = repository.appending(path: "Scripts/ab").path
        let run = try bench.start(
          "ab", [script, "--workload", workload, "--rounds", "1", "--seconds", "1", "--points", "2", "--report", report]
        ).wait(seconds: 150)
        try #require(run.status == 0, "\(run.errors)")
        let page = "\(report)/report.html"
        #expect(try FileManager.default.contentsOfDirectory(atPath: report) == ["report.html"])
        let text = try String(contentsOfFile: page, encoding: .utf8)
        // Nothing is fetched from anywhere: names of XML languages and links inside the page are all.
        for reference in text.matches(of: #/(?:src|href)\s*=\s*["']([^"']*)|url\(\s*["']?([^"')]*)/#) {
          #expect((reference.output.1 ?? reference.output.2 ?? "").hasPrefix("#"), "\(reference.output.0)")
        }

        let looked = try bench.start(
          "look", ["/usr/bin/python3", testProgram("look_at_page.py"), page] + Self.colours.keys).wait(seconds: 120)
        try #require(looked.status == 0, "\(looked.errors)")
        let seen = try JSONDecoder().decode(Page.self, from: Data(looked.output.utf8))
        for figure in seen.figures { #expect(figure.width > 300 && figure.height > 200) }
        for title in titles {
          let figure = try #require(seen.figures.first { $0.texts.contains { $0.hasSuffix(": \(title)") } }, "\(title)")
          for colour in Self.colours.values {
            // From one point to another, not a mark in the legend.
            #expect(figure.lines.contains { $0.colour == colour && $0.length > 50 }, "\(title): \(colour)")
          }
        }
        if workload == "sockperf-pp" { #expect(seen.figures.contains { $0.texts.contains("99.99%") }) }
        for colour in Self.colours.keys { #expect(seen.pixels[colour] ?? 0 > 200, "\(colour) on the screen") }
      }
    }
  }
}
