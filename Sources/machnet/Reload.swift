import ArgumentParser
import CMachnetABI
import Glibc
import MachnetControl

struct Reload: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Has the daemon read the flows of its config again.")

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    let client = try daemon.connect()
    let reply = try client.call(client.request(MN_REQUEST_RELOAD))
    switch reply.header.status {
    case 0: return
    case EPERM: complain("machnet: only root and the daemon's own user may reload it")
    default: complain("\(try ControlClient.text(reply))\nmachnet: nothing is reloaded; the old rules stay")
    }
    throw ExitCode.failure
  }
}
