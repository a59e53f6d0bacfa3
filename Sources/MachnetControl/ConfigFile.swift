import CLinux
import Glibc

/// Why there is no config: text for a person, one mistake per line.
public struct ConfigFailure: Error, CustomStringConvertible, Sendable {
  public let description: String

  package init(description: String) { self.description = description }
}

extension Config {
  /// Files larger than this are no config.
  static let maximumFileBytes = 1 << 20

  /// Reads a config file.
  public static func load(file: String, machine: Machine = .current) throws(ConfigFailure) -> Config {
    let text = try read(file)
    do throws(ConfigMistakes) {
      return try Config(yaml: text, machine: machine)
    } catch {
      throw ConfigFailure(description: error.description(file: file))
    }
  }

  package static func read(_ file: String) throws(ConfigFailure) -> String {
    let number = unsafe open(file, O_RDONLY | O_CLOEXEC)
    guard number >= 0, let descriptor = try? Descriptor(number, "open") else {
      throw ConfigFailure(
        description: "\(file): error: expected a readable config file, found: \(unsafe String(cString: strerror(errno)))")
    }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = unsafe Glibc.read(descriptor.number, &chunk, chunk.count)
      guard count >= 0 else {
        throw ConfigFailure(
          description: "\(file): error: expected a readable file, found: \(unsafe String(cString: strerror(errno)))")
      }
      if count == 0 { break }
      bytes += chunk[..<count]
      guard bytes.count <= maximumFileBytes else {
        throw ConfigFailure(description: "\(file): error: expected at most \(maximumFileBytes) bytes, found more")
      }
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw ConfigFailure(description: "\(file): error: expected YAML in UTF-8, found other bytes")
    }
    return text
  }
}

extension Machine {
  /// The machine that this process runs on.
  public static var current: Machine {
    var cpus = [Int32](repeating: 0, count: 1024)
    let count = unsafe mnc_allowed_cpus(&cpus, Int32(cpus.count))
    return Machine(processors: Set(cpus.prefix(max(0, Int(count))).map(Int.init))) { name in
      unsafe mnc_group_id(name) >= 0
    }
  }
}
