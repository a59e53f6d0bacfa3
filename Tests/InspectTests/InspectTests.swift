import CElf
import Foundation
import Testing

@testable import MachnetInspect

private let repository = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../..").standardized
private let products = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
private let preload = products.appending(path: "libmachnet-preload.so").path

/// A directory that goes with the test.
private final class Scratch {
  let path: String

  init() throws {
    path = FileManager.default.temporaryDirectory.appending(path: "machnet-inspect-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func write(_ text: String, to name: String, mode: Int = 0o755) throws -> String {
    try text.write(toFile: "\(path)/\(name)", atomically: true, encoding: .utf8)
    try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: "\(path)/\(name)")
    return "\(path)/\(name)"
  }

  func write(_ bytes: [UInt8], to name: String) throws -> String {
    try Data(bytes).write(to: URL(filePath: "\(path)/\(name)"))
    return "\(path)/\(name)"
  }

  /// A program of the compiler's.
  func compile(_ source: String, _ flags: String..., to name: String = "program") throws -> String {
    let file = try write(source, to: "\(name).c")
    try run(["cc", "-O1", "-o", "\(path)/\(name)", file] + flags)
    return "\(path)/\(name)"
  }

  func run(_ command: [String]) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/env")
    process.arguments = command
    try process.run()
    process.waitUntilExit()
    try #require(process.terminationStatus == 0, "\(command)")
  }
}

private let sender = """
  #include <stddef.h>
  #include <sys/sendfile.h>
  #include <sys/socket.h>
  int main(void) { return sendto(0, "", 0, 0, 0, 0) + recvmsg(0, 0, 0) + sendfile(0, 0, 0, 0); }
  """

private func inspect(
  _ program: String, uid: UInt32 = 0, gid: UInt32 = 0, environment: [String: String] = ["PATH": "/usr/bin:/bin"]
) throws -> Inspection {
  try Inspector(preload: preload, environment: environment, uid: uid, gid: gid).inspect(program)
}

@Suite struct InspectTests {
  @Test func theTableOfCallsIsWhatThePreloadLibraryExports() throws {
    let map = try String(contentsOf: repository.appending(path: "Shim/Preload/exports.map"), encoding: .utf8)
    let list = map.split(separator: "local:")[0].split(separator: "global:")[1]
    let wanted = Set(list.split { !($0.isLetter || $0.isNumber || $0 == "_") }.map(String.init))
    let calls = try CallTable(preload: ElfFile(path: preload))
    #expect(calls.intercepted == wanted)
    #expect(CallTable.ofSockets.isSubset(of: wanted))
    #expect(wanted.isDisjoint(with: CallTable.past.keys), "a call is intercepted, or it goes past")
  }

  @Test func aProgramOfTheSystem() throws {
    let found = try inspect("bash")
    #expect(found.isInterceptable && found.kind == .dynamic && found.libc == "glibc")
    #expect(found.file == "/usr/bin/bash" || found.file == "/bin/bash")
    #expect(found.intercepted["read"]?.contains("bash") == true)
    let libc = try #require(found.libraries.first { $0.name == "libc.so.6" })
    #expect(libc.path != nil && libc.foundBy == "ld.so.cache")
    #expect(found.glibcFound != nil && found.glibcFound == latest([found.glibcNeeded!, found.glibcFound!].map { "GLIBC_\($0)" }))
  }

  @Test func importsOfTheProgramAndOfItsLibraries() throws {
    let scratch = try Scratch()
    _ = try scratch.compile(
      "#include <sys/socket.h>\nint inner(void) { return recvfrom(0, 0, 0, 0, 0, 0); }", "-shared", "-fPIC", to: "libinner.so")
    let program = try scratch.compile(
      sender.replacingOccurrences(of: "int main", with: "int inner(void); int main").replacingOccurrences(of: "return", with: "return inner() +"), "-L\(scratch.path)", "-linner",
      "-Wl,-rpath,$ORIGIN")
    let found = try inspect(program)
    #expect(found.isInterceptable && found.verdict == "can be intercepted")
    #expect(found.intercepted["sendto"] == ["program"])
    #expect(found.intercepted["recvfrom"] == ["libinner.so"])
    #expect(found.notIntercepted.keys.contains { $0.hasPrefix("sendfile") })
    #expect(found.libraries.first { $0.name == "libinner.so" }?.foundBy == "RUNPATH")
    #expect(found.runpath == ["$ORIGIN"])

    // Moved away, it is found by LD_LIBRARY_PATH or not at all.
    let elsewhere = try Scratch()
    try FileManager.default.moveItem(atPath: "\(scratch.path)/libinner.so", toPath: "\(elsewhere.path)/libinner.so")
    #expect(try inspect(program).notes.contains { $0.contains("not found: libinner.so") })
    let environment = ["PATH": "/usr/bin", "LD_LIBRARY_PATH": elsewhere.path]
    let led = try inspect(program, environment: environment)
    #expect(led.libraries.first { $0.name == "libinner.so" }?.foundBy == "LD_LIBRARY_PATH")
  }

  @Test func rpathIsInheritedAndRunpathIsNot() throws {
    let scratch = try Scratch()
    _ = try scratch.compile("int leaf(void) { return 1; }", "-shared", "-fPIC", to: "libleaf.so")
    _ = try scratch.compile(
      "int leaf(void); int middle(void) { return leaf(); }", "-shared", "-fPIC", "-L\(scratch.path)", "-lleaf", to: "libmiddle.so")
    for (tags, leafIsFound) in [("--disable-new-dtags", true), ("--enable-new-dtags", false)] {
      let program = try scratch.compile(
        "int middle(void); int main(void) { return middle(); }", "-L\(scratch.path)", "-lmiddle", "-Wl,\(tags)",
        "-Wl,--allow-shlib-undefined", "-Wl,-rpath,\(scratch.path)")
      let found = try inspect(program)
      #expect(found.libraries.first { $0.name == "libmiddle.so" }?.path != nil)
      #expect((found.libraries.first { $0.name == "libleaf.so" }?.path != nil) == leafIsFound, "\(tags)")
      // The loader is the judge.
      let process = Process()
      process.executableURL = URL(filePath: program)
      process.standardError = FileHandle.nullDevice
      try process.run()
      process.waitUntilExit()
      #expect((process.terminationStatus == 1) == leafIsFound, "\(tags): \(process.terminationStatus)")
    }
  }

  @Test func searchPathsThatOthersCanFill() throws {
    let scratch = try Scratch()
    let found = try inspect(try scratch.compile(sender, "-Wl,-rpath,lib:/tmp"))
    #expect(found.notes.contains { $0.contains("depends on the current directory") })
    #expect(found.notes.contains { $0.contains("/tmp, which everybody may write") })
  }

  @Test("linked without a loader", arguments: [("-static", Inspection.Kind.staticallyLinked), ("-static-pie", .staticPIE)])
  func linkedStatically(_ flag: String, _ kind: Inspection.Kind) throws {
    let scratch = try Scratch()
    let found = try inspect(try scratch.compile(sender, flag))
    #expect(found.kind == kind && !found.isInterceptable)
    #expect(found.verdict.contains("statically linked"))
  }

  @Test func theProgramsOfOthers() throws {
    let scratch = try Scratch()
    let musl = try inspect(try scratch.compile(sender, "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"))
    #expect(!musl.isInterceptable && musl.libc == "musl" && musl.verdict.contains("for glibc"))

    let program = try scratch.compile(sender)
    try scratch.run(["objcopy", "--add-section", ".gopclntab=/etc/hostname", program])
    let go = try inspect(program)
    #expect(go.isGo && !go.isInterceptable && go.verdict.contains("Go"))

    var bytes = try [UInt8](Data(contentsOf: URL(filePath: try scratch.compile(sender))))
    bytes[18] = bytes[18] == 183 ? 62 : 183
    let foreign = try inspect(try scratch.write(bytes, to: "foreign"))
    #expect(!foreign.isInterceptable && foreign.verdict.contains("the preload library for"))

    let library = try inspect(try scratch.compile("int x;", "-shared", to: "libx.so"))
    #expect(!library.isInterceptable && library.kind == .library)
  }

  @Test func moreRightsThanTheUser() throws {
    let scratch = try Scratch()
    let program = try scratch.compile(sender)
    let owner = getuid(), group = getgid()
    try FileManager.default.setAttributes([.posixPermissions: 0o4755], ofItemAtPath: program)
    #expect(try inspect(program, uid: owner, gid: group).isInterceptable)
    let setuid = try inspect(program, uid: owner + 1, gid: group)
    #expect(setuid.setuid && setuid.verdict.contains("setuid"))
    try FileManager.default.setAttributes([.posixPermissions: 0o2755], ofItemAtPath: program)
    #expect(try inspect(program, uid: owner, gid: group + 1).verdict.contains("setgid"))
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: program)
    // VFS_CAP_REVISION_2, effective; CAP_NET_RAW permitted (capabilities(7)). Only root may write it.
    if getuid() == 0 {
      try scratch.run([
        "python3", "-c", "import os; os.setxattr('\(program)', 'security.capability', bytes([1, 0, 0, 2, 0, 32]) + bytes(14))",
      ])
      #expect(try inspect(program, uid: owner + 1, gid: group).verdict.contains("file capabilities"))
      #expect(try inspect(program, uid: 0, gid: group).isInterceptable)
    }
  }

  @Test func ringsAndSystemCallsOfItsOwn() throws {
    let scratch = try Scratch()
    let ring = try inspect(
      try scratch.compile(
        """
        #define _GNU_SOURCE
        #include <unistd.h>
        #include <sys/socket.h>
        #include <sys/syscall.h>
        int main(void) { return socket(2, 2, 0) + syscall(SYS_io_uring_setup, 8, 0) + syscall(SYS_io_uring_enter, 3, 0, 0, 0, 0, 0); }
        """))
    #expect(ring.usesIOUring && ring.isInterceptable && ring.verdict.contains("not all of it"))
    #expect(ring.intercepted["syscall"] == ["program"])
    #expect(try !inspect(try scratch.compile(sender)).usesIOUring)
    #if arch(x86_64)
    let direct = try inspect(
      try scratch.compile(
        "int main(void) { long r; __asm__ volatile(\"movl $44, %%eax\\n\\txorl %%edi, %%edi\\n\\tsyscall\" : \"=a\"(r) :: \"rdi\", \"rcx\", \"r11\", \"memory\"); return r; }"))
    #expect(direct.systemCalls == ["program": ["sendto": 1]])
    #expect(direct.notes.contains { $0.contains("without libc (sendto)") })
    #endif
  }

  @Test func itsOwnCallsComeFirst() throws {
    let scratch = try Scratch()
    let found = try inspect(
      try scratch.compile("int recvfrom(void) { return 1; }\nint main(void) { return 0; }", "-rdynamic", "-fno-builtin"))
    #expect(found.notes.contains { $0.contains("its own recvfrom") })
  }

  @Test func scriptsAreFollowed() throws {
    let scratch = try Scratch()
    let first = try scratch.write("#!/usr/bin/env -S X=1 bash -e\n", to: "first")
    #expect(try inspect(first).scripts == [first] && inspect(first).file.hasSuffix("/bash"))
    let second = try scratch.write("#! \(first) argument\n", to: "second")
    #expect(try inspect(second).scripts == [second, first])
    let round = try scratch.write("#!\(scratch.path)/round\n", to: "round")
    for (text, name) in [("#!/nowhere/at-all\n", "gone"), ("#!\n", "empty"), ("#!/usr/bin/env no-such-program-x\n", "env")] {
      let script = try scratch.write(text, to: name)
      #expect(throws: InspectionError.self) { try inspect(script) }
    }
    #expect(throws: InspectionError.self) { try inspect(round) }
  }

  @Test func whatIsNoProgram() throws {
    let scratch = try Scratch()
    #expect(throws: InspectionError("/nowhere", "No such file or directory")) { try inspect("/nowhere") }
    #expect(throws: InspectionError.self) { try inspect("no-such-program-x") }
    #expect(throws: InspectionError.self) { try inspect("") }
    #expect(throws: InspectionError("/tmp", "not a file")) { try inspect("/tmp") }
    #expect(throws: InspectionError("/dev/null", "not a file")) { try inspect("/dev/null") }
    let fifo = "\(scratch.path)/fifo"
    unsafe mkfifo(fifo, 0o755)
    #expect(throws: InspectionError(fifo, "not a file")) { try inspect(fifo) }
    let empty = try scratch.write("", to: "empty")
    #expect(throws: InspectionError.self) { try inspect(empty) }
  }
}

/// Files that lie: an error or an answer, never a crash.
@Suite struct DamageTests {
  private func smallProgram(_ scratch: Scratch) throws -> [UInt8] {
    let program = try scratch.compile(
      sender, "-s", "-Wl,-z,noseparate-code", "-Wl,-rpath,$ORIGIN", "-Wl,--hash-style=both", to: "small")
    return try [UInt8](Data(contentsOf: URL(filePath: program)))
  }

  @Test func everyTruncationIsAnError() throws {
    let scratch = try Scratch()
    let whole = try smallProgram(scratch)
    let inspector = try Inspector(preload: preload, environment: [:], uid: 0, gid: 0)
    let path = "\(scratch.path)/small"
    #expect(try inspector.inspect(path).isInterceptable)
    // From the end, in place: each length once.
    for length in (0..<whole.count).reversed() {
      #expect(unsafe truncate(path, off_t(length)) == 0)
      #expect(throws: InspectionError.self, "\(length) of \(whole.count) bytes") { try inspector.inspect(path) }
    }
  }

  @Test func bytesThatAreWrong() throws {
    let scratch = try Scratch()
    let whole = try smallProgram(scratch)
    let inspector = try Inspector(preload: preload, environment: [:], uid: 0, gid: 0)
    let seed = ProcessInfo.processInfo.environment["SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 0...UInt64.max)
    print("SEED=\(seed)")
    var state = seed
    func random(_ limit: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % limit
    }
    // Where the interesting words are: the ELF header, the program headers and the dynamic section; and anywhere.
    let elf = try ElfFile(path: "\(scratch.path)/small")
    let dynamic = Int(elf.segments.first { $0.type == 2 }!.offset)
    var errors = 0
    for _ in 0..<1500 {
      var bytes = whole
      for _ in 0...random(3) {
        let place =
          switch random(4) {
          case 0: random(64)
          case 1: 64 + random(13 * 56)
          case 2: dynamic + random(400)
          default: random(whole.count)
          }
        bytes[min(place, whole.count - 1)] = [0, 0xff, 0x7f, 0x80, UInt8(random(256))][random(5)]
      }
      let path = try scratch.write(bytes, to: "wrong")
      do throws(InspectionError) {
        _ = try inspector.inspect(path)
      } catch {
        errors += 1
      }
    }
    #expect(errors > 100, "the damage is seen")
  }

  @Test func cachesThatLie() throws {
    let real = try [UInt8](Data(contentsOf: URL(filePath: "/etc/ld.so.cache")))
    #expect(!LoaderCache(real).paths(of: "libc.so.6").isEmpty)
    for length in stride(from: 0, to: real.count, by: 97) { _ = LoaderCache(Array(real[..<length])) }
    var state: UInt64 = 7
    for _ in 0..<200 {
      var bytes = real
      for _ in 0..<8 {
        state = state &* 6_364_136_223_846_793_005 &+ 1
        bytes[Int(state >> 40) % min(bytes.count, 4096)] = UInt8(truncatingIfNeeded: state >> 33)
      }
      _ = LoaderCache(bytes)
    }
  }
}
