import Glibc

/// What a name on a command line executes: an ELF file, by way of the interpreters of scripts.
struct Executed {
  /// The scripts on the way, the first one first.
  var scripts: [String]
  let path: String

  /// The kernel follows this many (BINPRM's recursion limit), and so do we.
  private static let interpretersMax = 5

  /// - Parameters:
  ///   - name: as a shell takes it: looked up in `searchPath` unless it has a slash.
  init(_ name: String, searchPath: String) throws(InspectionError) {
    guard !name.utf8.contains(0), var path = Self.find(name, searchPath) else {
      throw InspectionError(name, "no such program")
    }
    var scripts: [String] = []
    while let interpreter = try Self.interpreter(of: path, searchPath) {
      scripts.append(path)
      guard scripts.count <= Self.interpretersMax else {
        throw InspectionError(name, "more than \(Self.interpretersMax) interpreters deep")
      }
      path = interpreter
    }
    self.scripts = scripts
    self.path = path
  }

  private static func find(_ name: String, _ searchPath: String) -> String? {
    if name.contains("/") { return name }
    return searchPath.split(separator: ":", omittingEmptySubsequences: false).lazy
      .map { $0.isEmpty ? name : "\($0)/\(name)" }.first { unsafe access($0, X_OK) == 0 && !isDirectory($0) }
  }

  private static func isDirectory(_ path: String) -> Bool {
    var status = stat()
    return unsafe stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  /// The program of a `#!` line (execve(2)); nil for what is no script. `env` is followed to what it starts.
  private static func interpreter(of path: String, _ searchPath: String) throws(InspectionError) -> String? {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { throw InspectionError(path, unsafe String(cString: strerror(errno))) }
    guard status.st_mode & S_IFMT == S_IFREG else { throw InspectionError(path, "not a file") }
    guard let line = firstLine(of: path), line.starts(with: "#!") else { return nil }
    let words = line.dropFirst(2).split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
    guard let program = words.first else { throw InspectionError(path, "its #! line names no interpreter") }
    guard unsafe access(program, F_OK) == 0 else {
      throw InspectionError(path, "its interpreter \(program) is not there")
    }
    guard lastComponent(program) == "env" else { return program }
    // env [-S] [NAME=VALUE]... PROGRAM
    guard let started = words.dropFirst().first(where: { !$0.hasPrefix("-") && !$0.contains("=") }),
      let found = find(started, searchPath)
    else { throw InspectionError(path, "what its #! line has env start is not there") }
    return found
  }

  /// The first 255 bytes up to the line's end; nil when the file cannot be read.
  private static func firstLine(of path: String) -> String? {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 255)
    let count = unsafe read(descriptor, &bytes, bytes.count)
    guard count > 0 else { return nil }
    return String(decoding: bytes[..<count].prefix { $0 != 10 && $0 != 0 }, as: UTF8.self)
  }
}
