# A stand-in for the parts of nixpkgs' lib that ecboot's modules use: options of
# the common types, definitions with mkIf, mkMerge and priorities, submodules.
# It is stricter where nixpkgs is lax, and leaves out what nobody here uses.
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    removeAttrs
    toJSON
    typeOf
    ;

  loc = path: concatStringsSep "." path;
  is = kind: v: isAttrs v && (v._type or null) == kind;

  # The definitions that count: conditions that do not hold and weaker priorities
  # are gone.
  discharge =
    def:
    if is "if" def then
      (if def.condition then discharge def.content else [ ])
    else if is "merge" def then
      concatMap discharge def.contents
    else if is "override" def then
      map (d: d // { inherit (def) priority; }) (discharge def.content)
    else
      [
        {
          value = def;
          priority = 100;
        }
      ];
  strongest =
    defs:
    let
      least = foldl' (p: d: if d.priority < p then d.priority else p) 9999 defs;
    in
    map (d: d.value) (filter (d: d.priority == least) defs);

  # A set of definitions as a list of plain sets: conditions and priorities move
  # down to the values, since a condition may depend on the configuration itself.
  pushDown =
    def:
    if is "if" def then
      map (mapAttrs (_: lib.mkIf def.condition)) (pushDown def.content)
    else if is "merge" def then
      concatMap pushDown def.contents
    else if is "override" def then
      map (mapAttrs (_: lib.mkOverride def.priority)) (pushDown def.content)
    else
      [ def ];
  byName =
    sets:
    let
      names = lib.unique (concatMap attrNames sets);
    in
    lib.genAttrs names (n: concatMap (s: if s ? ${n} then [ s.${n} ] else [ ]) sets);

  mergeDefinitions =
    path: type: defs:
    let
      values = strongest (concatMap discharge defs);
      wrong = filter (v: !type.check v) values;
    in
    if wrong != [ ] then
      throw "A definition for option `${loc path}' is not of type `${type.name}': ${
        if isFunction (head wrong) then "a function" else typeOf (head wrong)
      }"
    else
      type.merge path values;

  # A type whose value one definition gives.
  single = name: check: {
    inherit name check;
    merge =
      path: values:
      if length (lib.unique values) == 1 then head values else throw "The option `${loc path}' is defined several times";
  };

  normal =
    args: module:
    let
      m =
        if isPath module || isString module then
          normal args (import module)
        else if isFunction module then
          normal args (module args)
        else
          module;
    in
    if m ? config || m ? options then
      {
        imports = m.imports or [ ];
        options = m.options or { };
        config = m.config or { };
      }
    else
      {
        imports = m.imports or [ ];
        options = { };
        config = removeAttrs m [ "imports" ];
      };
  collect =
    args: modules:
    concatMap (
      module:
      let
        m = normal args module;
      in
      [ m ] ++ collect args m.imports
    ) modules;

  mergeOptions =
    path: trees:
    mapAttrs (
      name: found:
      let
        at = path ++ [ name ];
      in
      if lib.any (is "option") found then
        (if length found == 1 then head found else throw "The option `${loc at}' is declared several times")
      else
        mergeOptions at found
    ) (byName trees);

  evaluate =
    path: options: defs:
    let
      given = byName (concatMap pushDown defs);
      unknown = filter (n: !(options ? ${n}) && n != "_module") (attrNames given);
    in
    if unknown != [ ] then
      throw "The option `${loc (path ++ [ (head unknown) ])}' does not exist"
    else
      mapAttrs (
        name: option:
        let
          at = path ++ [ name ];
          here = given.${name} or [ ];
          all = here ++ (if option ? default then [ (lib.mkOverride 1500 option.default) ] else [ ]);
        in
        if !is "option" option then
          evaluate at option here
        else if concatMap discharge all == [ ] && !(option.type ? empty) then
          throw "The option `${loc at}' is used but not defined"
        else if concatMap discharge all == [ ] then
          option.type.empty
        else
          mergeDefinitions at option.type all
      ) options;

  lib = {
    inherit
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      filter
      foldl'
      head
      isAttrs
      isBool
      isInt
      isList
      isString
      length
      listToAttrs
      mapAttrs
      removeAttrs
      ;
    inherit (builtins)
      any
      all
      isFunction
      match
      replaceStrings
      split
      stringLength
      substring
      tail
      ;

    unique = foldl' (seen: v: if elem v seen then seen else seen ++ [ v ]) [ ];
    genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);
    nameValuePair = name: value: { inherit name value; };
    mapAttrsToList = f: set: map (n: f n set.${n}) (attrNames set);
    mapAttrs' = f: set: listToAttrs (map (n: f n set.${n}) (attrNames set));
    concatMapAttrs = f: set: foldl' (a: b: a // b) { } (lib.mapAttrsToList f set);
    filterAttrs = pred: set: listToAttrs (concatMap (n: if pred n set.${n} then [ { name = n; value = set.${n}; } ] else [ ]) (attrNames set));
    mapAttrsRecursive =
      f:
      let
        recurse = path: mapAttrs (n: v: if isAttrs v then recurse (path ++ [ n ]) v else f (path ++ [ n ]) v);
      in
      recurse [ ];
    optional = c: v: if c then [ v ] else [ ];
    optionals = c: v: if c then v else [ ];
    optionalAttrs = c: v: if c then v else { };
    hasPrefix = p: s: builtins.substring 0 (builtins.stringLength p) s == p;
    removePrefix = p: s: if lib.hasPrefix p s then builtins.substring (builtins.stringLength p) (-1) s else s;
    splitString = sep: s: filter isString (builtins.split (lib.escapeRegex sep) s);
    escapeRegex = builtins.replaceStrings [ "." "," "+" "*" "[" "]" "(" ")" "|" "^" "$" "?" "\\" ] [ "\\." "," "\\+" "\\*" "\\[" "\\]" "\\(" "\\)" "\\|" "\\^" "\\$" "\\?" "\\\\" ];
    boolToString = b: if b then "true" else "false";
    getExe' = package: program: "${package}/bin/${program}";

    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkOverride = priority: content: { _type = "override"; inherit priority content; };
    mkDefault = lib.mkOverride 1000;
    mkForce = lib.mkOverride 50;
    mkOption = o: { _type = "option"; } // o;
    mkEnableOption = what: lib.mkOption { type = lib.types.bool; default = false; description = what; };
    literalExpression = text: text;

    types = {
      bool = single "boolean" isBool;
      int = single "integer" isInt;
      ints.positive = single "positive integer" (v: isInt v && v > 0);
      port = single "port" (v: isInt v && v >= 0 && v <= 65535);
      str = single "string" isString;
      path = single "absolute path" (v: isPath v || isString v && lib.hasPrefix "/" v);
      package = single "package" (v: isAttrs v && v.type or null == "derivation");
      strMatching = regex: single "string matching ${regex}" (v: isString v && builtins.match regex v != null);
      enum = values: single "one of ${toJSON values}" (v: elem v values);
      attrs = { name = "set"; check = isAttrs; merge = _: foldl' (a: b: a // b) { }; };
      unspecified = single "anything" (_: true);
      raw = single "anything" (_: true);
      nullOr = type: {
        name = "null or ${type.name}";
        check = v: v == null || type.check v;
        merge = path: values: if lib.all (v: v == null) values then null else mergeDefinitions path type values;
      };
      listOf = type: {
        name = "list of ${type.name}";
        check = isList;
        empty = [ ];
        merge = path: values: map (v: mergeDefinitions path type [ v ]) (concatLists values);
      };
      attrsOf = type: {
        name = "set of ${type.name}";
        check = isAttrs;
        empty = { };
        merge =
          path: values:
          mapAttrs (n: mergeDefinitions (path ++ [ n ]) type) (
            lib.filterAttrs (_: defs: concatMap discharge defs != [ ]) (byName (concatMap pushDown values))
          );
      };
      oneOf = alternatives: {
        name = "one of several types";
        check = v: lib.any (t: t.check v) alternatives;
        merge =
          path: values:
          let
            fitting = filter (t: lib.all t.check values) alternatives;
          in
          if fitting == [ ] then throw "The option `${loc path}' is defined in several ways" else (head fitting).merge path values;
      };
      submodule = module: {
        name = "submodule";
        check = v: isAttrs v || isFunction v;
        empty = { };
        merge =
          path: values:
          (lib.evalModules {
            specialArgs.name = lib.last path;
            modules = [ module ] ++ map (v: if isFunction v then v else { config = v; }) values;
            prefix = path;
          }).config;
      };
    };
    last = list: builtins.elemAt list (length list - 1);

    evalModules =
      {
        modules,
        specialArgs ? { },
        prefix ? [ ],
      }:
      let
        parts = collect ({ inherit lib config; options = tree; } // specialArgs) modules;
        tree = mergeOptions prefix (map (m: m.options) parts);
        config = evaluate prefix tree (map (m: m.config) parts);
      in
      {
        inherit config;
        options = tree;
      };
  };
in
lib
