import CMachnetABI

/// What `status` says about an interface and cannot know from the config.
public struct PortDescription: Sendable {
  public var name: String
  public init(name: String) { self.name = name }
}

extension ControlServer {
  func status(_ reply: inout mn_reply) throws(Refusal) -> Descriptor {
    throw Refusal(38)
  }
}
