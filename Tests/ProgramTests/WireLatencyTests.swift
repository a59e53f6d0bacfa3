import Foundation
import Testing

/// Latency from the wire, of Scripts/ab.
@Suite struct LatencyFromTheWire {
  static let cases = """
    import struct, sys
    sys.path.insert(0, sys.argv[1])
    from lab import Failure
    from wire import exchanges, frames

    SERVER, ASKER, OTHER = (b"\\x0a\\x4d\\0\\1", 53), (b"\\x0a\\x4d\\0\\2", 1000), (b"\\x0a\\x4d\\0\\2", 1001)
    def asks(at, who=ASKER): return (at, who, SERVER)
    def answers(at, who=ASKER): return (at, SERVER, who)
    def milliseconds(found): return [[round(1000 * value, 3) for value in values] for values in found]

    # One asks and is answered; the second datagram of an answer is none of its own, and flows are apart.
    print(milliseconds(exchanges([asks(0), asks(.0005, OTHER), answers(.001), answers(.0012), asks(.002), answers(.0025, OTHER), answers(.005)], 53)))
    # An answer is lost: the flow is silent, and begins anew. What was left open counts for nothing.
    print(milliseconds(exchanges([asks(0), asks(1), answers(1.001), asks(1.002), answers(1.004)], 53)))
    # One question in eleven comes before its time: it, the one before and all until the flow is quiet are left out.
    calm = [one for i in range(10) for one in (asks(i / 1000), answers(i / 1000 + .0001))]
    found = exchanges(calm + [asks(.02), asks(.0201), answers(.0202), answers(.0203)], 53)
    print(len(found[0]), len(found[1]))
    try:
        exchanges([asks(0), asks(.001), answers(.002), answers(.003)], 53)
    except Failure as failure:
        print("--metric" in str(failure))

    def frame(source, destination, fragment=0, options=b""):
        udp = struct.pack(">HHHH", source[1], destination[1], 8, 0)
        ip = struct.pack(">BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 28 + len(options), 7, fragment, 64, 17, 0, source[0], destination[0])
        return bytes(12) + b"\\x08\\0" + ip + options + udp

    kept = [frame(ASKER, SERVER, options=bytes(4)), frame(SERVER, ASKER), frame(SERVER, ASKER, fragment=5), bytes(12) + b"\\x08\\6" + bytes(28)]
    pcap = struct.pack("=IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 64, 1)
    for i, one in enumerate(kept):
        pcap += struct.pack("=IIII", 1, 500_000_000 - i, len(one), len(one)) + one
    print([(round(at, 9), source[1], destination[1]) for at, source, destination in frames(pcap)])

    def block(kind, body):
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)
    def interface(name): return block(1, struct.pack("<HHIHH", 1, 0, 64, 2, len(name)) + name + bytes(-len(name) % 4) + bytes(4))
    def packet(number, at, data): return block(6, struct.pack("<IIIII", number, at >> 32, at & 0xFFFFFFFF, len(data), len(data)) + data)
    section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    two = section + interface(b"server") + interface(b"client") + packet(0, 1, kept[0]) + packet(1, 2, kept[0]) + packet(1, 3, kept[1])
    print([round(at * 1e9) for at, _, _ in frames(two)])
    print([round(at * 1e9) for at, _, _ in frames(section + interface(b"local") + packet(0, 1 << 40, kept[0]))])
    """

  @Test("questions and answers are told apart, in both kinds of files")
  func exchanges() throws {
    #expect(
      try outputOfLibrary(Self.cases).split(separator: "\n") == [
        "[[1.0, 2.0, 3.0], [2.0]]", "[[1.0, 2.0], [2.0]]", "10 10", "True", "[(1.499999999, 53, 1000), (1.5, 1000, 53)]", "[2, 3]", "[1099511627776]",
      ])
  }
}

extension OneAtATime {
  @Suite(.serialized, .enabled(if: Topology.available.contains(.local))) struct Comparison {
    struct Row: Decodable {
      let metric: String
      let kernel, kernel_best, machnet: Double
    }

    private func compare(_ words: [String], in bench: Bench) throws -> Program.Result {
      let server = "/usr/bin/python3 '\(testProgram("blocking_echo.py"))' server {address} {port}"
      let client = "/usr/bin/python3 '\(testProgram("blocking_echo.py"))' client {address} {port} 2000 64"
      return try bench.start(
        "ab",
        [
          repository.appending(path: "Scripts/ab").path, "--server", server, "--client", client, "--port", "\(Bench.freshPort())", "--rounds", "1",
          "--seconds", "1",
        ] + words
      ).wait(seconds: 120)
    }

    @Test("latency of any two programs, from the wire", .enabled(if: isRoot, "tcpdump wants root"), arguments: ["local", "pair", "wire"])
    func fromTheWire(_ topology: String) throws {
      try withBench(.kernel) { bench in
        let done = try compare(["--topology", topology, "--latency", "wire", "--metric", "answers:1:higher:ok ([0-9]+)", "--json", "-"], in: bench)
        try #require(done.status == 0, "\(done.errors)")
        let rows = try JSONDecoder().decode([Row].self, from: Data(done.output.utf8))
        let values = Dictionary(uniqueKeysWithValues: rows.map { ($0.metric, [$0.kernel, $0.kernel_best, $0.machnet]) })
        #expect(Set(values.keys) == ["response p50", "response p99", "period p50", "period p99", "answers"])
        #expect(values["answers"] == [2000, 2000, 2000])
        for quantile in ["p50", "p99"] {
          // From one question to the next is more than to the answer in between.
          for (response, period) in zip(values["response \(quantile)"]!, values["period \(quantile)"]!) { #expect(0 < response && response < period) }
        }
      }
    }

    @Test("a server that is started by a script is found, whatever its name")
    func byAScript() throws {
      try withBench(.kernel) { bench in
        let script = try bench.write("#!/bin/sh\nexec /usr/bin/python3 '\(testProgram("blocking_echo.py"))' server \"$@\"\n", to: "start")
        try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: script)
        let done = try compare(["--server", "\(script) {address} {port}", "--json", "-"], in: bench)
        #expect(done.status == 0 && done.output.contains("\"run time\""), "\(done.errors)")
      }
    }

    @Test(
      "what cannot be measured is said before anything is",
      arguments: [
        (["--metric", "x"], "--metric wants NAME:UNIT"), (["--metric", "a:s:lower:(["], "is no regular expression"),
        (["--metric", "a:s:lower:x"], "has no group"), (["--metric", "a:s:less:(x)"], "`lower` or `higher`"),
        (["--server", "no-such-program {port}"], "there is no program 'no-such-program'"),
        (["--client", "true {prot}"], "expected a command with {address}"),
        (["--machnet-cpus", "0/0"], "expected ENGINES/SERVER/CLIENT"), (["--machnet-cpus", "0/0/99999"], "expected ENGINES/SERVER/CLIENT"),
        (["--json", "/nowhere/rows.json"], "cannot write /nowhere/rows.json: No such file"),
        (["--report", "/proc/report"], "cannot write /proc/report"),
        (["--latency", "wire", "--transport", "machnet", "--topology", "pair"], "sessions carry them"),
      ])
    func mistakes(_ words: [String], _ says: String) throws {
      try withBench(.kernel) { bench in
        let done = try compare(words, in: bench)
        #expect(done.status != 0 && done.errors.contains(says) && !done.errors.contains("Traceback"), "\(done.errors)")
      }
    }
  }
}
